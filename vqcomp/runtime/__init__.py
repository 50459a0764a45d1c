"""All that decoding needs, and nothing else: these files travel inside every archive, stripped."""
