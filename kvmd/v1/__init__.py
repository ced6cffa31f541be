"""Generated from proto/kvmd/v1 by tools/generate; not edited by hand."""
