"""The parts of training; `vqcomp/train.py` is the loop that puts them together."""
