"""Training loops and starts that several chapters share."""
