"""How do the layers' largest eigenvalues make that of the whole, and the stable rate?"""
