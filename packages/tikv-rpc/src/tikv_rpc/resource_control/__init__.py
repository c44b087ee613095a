"""Resource control: request units, and tokens for them, by resource group.

cost          what requests cost in request units (pure)
charge        what of the messages decides that (pure)
ru_v2         the second model of request units (pure)
bucket        the tokens of a group (pure)
group         one group: what it used, what it asks PD for (pure)
settings      what PD and the client set
source        what is needed of PD
controller    the groups at work, and the task that gets tokens
details       what requests cost, for callers
stats         how groups do, and what is counted of them
interceptor   `ResourceControl`
errors        how requests are refused
"""
