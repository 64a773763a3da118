import logging
import os

from llm_env.quiet import quiet_libraries


def test_what_deepspeed_says_of_a_missing_gpu_is_left_out_and_the_rest_is_not(monkeypatch):
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "of the user")
    logger, heard = logging.getLogger("DeepSpeed"), []
    before = list(logger.filters)
    quiet_libraries()
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger.addHandler(handler)
    try:
        logger.warning("Setting accelerator to CPU. If you have GPU …")
        logger.warning("an overflow")
    finally:
        logger.removeHandler(handler)
        logger.filters[:] = before
    assert heard == ["an overflow"]


def test_a_users_own_verbosity_wins(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    quiet_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
