"""A worker: one unprivileged process that parses one image."""
