"""How far an answer can be trusted: case against training data, mask against structures, Dice without a reference."""
