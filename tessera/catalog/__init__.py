"""Items and interactions: source readers, filtering, splits, the SQL catalogue and the enrichment ledger."""
