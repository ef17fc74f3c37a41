"""The instrument: server models, started as a user would start them, compared on this machine.

    cli --> plan: which samples, in which order         schema, environment: what is kept
     |        |                                            ^
     |        v                                            |
     +--> run: one sample after the other  ------------> result.json
             |                                             |
             v         core 0              core 1          v
           sample    [ server ] <====> [ generator ]     analysis (stats) --> report/
                          `==========> [ target ]

Rules: the servers are processes and never imported; what the instrument knows of a model is its
line in the registry and its source as text. Nothing that it starts outlives it.
"""
