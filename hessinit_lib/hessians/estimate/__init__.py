"""Any model: norms estimated from products of blocks with vectors."""
