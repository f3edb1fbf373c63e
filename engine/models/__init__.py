"""The models' forward passes and how their weights are read from a Hugging Face folder."""
