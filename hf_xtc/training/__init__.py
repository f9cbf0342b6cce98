"""`XTCTrainer`, its arguments and its callbacks."""
