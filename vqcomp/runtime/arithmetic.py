"""The constants of the exact arithmetic, which prediction and training share. FORMAT.md derives the bounds."""

EXACT_LIMIT = 1 << 24
"""Below this every integer is a float32, so sums of integers are exact in any order."""
ACTIVATION_MAX = 127
WEIGHT_MAX = 63
NORM_TARGET = 25
"""Mean absolute value of a normalised row: 127 is then about four standard deviations."""
HIDDEN_MAX = float.fromhex("0x1.689f26p+3")
"""The float32 nearest to the square root of 127: its square is rounded to ACTIVATION_MAX."""
LOGIT_UNIT = 64
"""Logits and gates are in 1/64 bit."""
GATE_MAX = 1 << 11
OUTPUT_BIAS_MAX = 1 << 14
SCORE_BIAS_MAX = 1 << 20
SCORE_RANGE = 1 << 15
"""Keys whose score is this far below the best get no weight; an eighth of it is about one nat."""
