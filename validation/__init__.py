"""Quality gates over the tables that pass between stages, as Great Expectations suites."""
