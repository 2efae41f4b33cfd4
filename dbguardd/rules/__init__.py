"""Rules: decide. Pure functions of facts, the policy and now, which return verdicts with reasons; jobs do the rest."""
