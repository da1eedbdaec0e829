"""What records say: statistics over seeds and settings, apart from the code that made them."""
