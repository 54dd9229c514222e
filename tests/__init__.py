"""The test suite mirrors `src/narrowcast`; `contract/` holds the tables of promises."""
