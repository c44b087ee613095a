"""PD and a network in memory; `tikv_pd.testing` has the names."""
