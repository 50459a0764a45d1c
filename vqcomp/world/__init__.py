"""What a predictor of tokens is good for besides compressing them."""
