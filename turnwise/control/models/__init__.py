"""Models: the base ones with their recipes, the registered ones, and the hubs that show them."""
