"""Who asks, what they may ask for, and whose turn it is."""
