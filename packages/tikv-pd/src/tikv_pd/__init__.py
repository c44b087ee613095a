"""The Placement Driver client of TiKV, and the base that every layer above shares.

Errors, `Deadline`, `Backoffer`, `SecurityConfig` and the values a cluster is made of; the transport seam is in
`tikv_pd.lowlevel`, fakes for tests are in `tikv_pd.testing`.
"""
