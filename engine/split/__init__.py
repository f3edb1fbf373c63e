"""One model over several processes: who holds which part of it, what they tell each other, and how they live and end together."""
