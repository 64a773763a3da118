"""Language models as policies: token generation, score models, and Safe RLHF on the core's loop.

Importing this package registers `llm_env/Token-v0` with Gymnasium; transformers is imported when
one is made.
"""

from gymnasium import register

register(id="llm_env/Token-v0", vector_entry_point="llm_env.env:TokenEnv")
