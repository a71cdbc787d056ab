"""Steps of the tutorial."""
