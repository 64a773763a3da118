"""Language models as policies: token generation, score models, and Safe RLHF on the core's loop."""
