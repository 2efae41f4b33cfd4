"""Rules decide: pure functions of facts, the policy and now, which return verdicts with reasons. Jobs act on them."""
