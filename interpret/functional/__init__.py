"""Pure math: arrays in, arrays out; no files, no hooks, no colours."""
