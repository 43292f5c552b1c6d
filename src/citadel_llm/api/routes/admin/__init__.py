"""`/admin/v1`: who may do what, how much, and what was done."""
