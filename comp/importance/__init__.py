"""CIM, the collaborative importance metric: parameters (Eq. 3 and 4) and tokens (Eq. 6 and 7)."""
