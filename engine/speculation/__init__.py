"""Guessing the next tokens, so that one forward pass can compute several; what is guessed wrong costs time and changes nothing."""
