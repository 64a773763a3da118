"""`python -m llm_env` is `crl`: what torchrun and deepspeed can start (`torchrun -m llm_env …`)."""

from llm_env.cli import main

main()
