"""Who answers a request: the members of PD, the services that do some of its work, and the way to each."""
