"""Custom Expectations: the checks of the trade that the stock ones do not know."""
