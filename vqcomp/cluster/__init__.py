"""Coding on several machines: Ray (https://ray.io, the extra vqcomp[cluster]) carries groups to them and back."""
