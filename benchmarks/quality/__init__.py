"""`tessera bench quality`: the papers' systems, their ablations and their peers, measured on one split."""
