"""`bpkit bench clinic`: seeded faults and healthy runs on real data, and what each monitor says of them."""
