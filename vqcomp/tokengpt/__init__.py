"""Networks of the GPT-2 family, computed exactly, and a codec by them. No archive uses it: see docs/gpt2m.md."""
