"""KVM_NO_FILES: the running kernel as /proc shows it to the client, and nothing of its memory."""
