"""Bad settings: keys, types, bounds, files of settings, controllers, options of commands."""

from tests.bad_input.case import Case, files, train

SOUND = "Sound"
GRADIENT = ("--preset", "ppo_lagrangian")

CASES = (
    Case(
        "unknown key",
        "a key that does not exist",
        train(SOUND, "ppo.epoch=3"),
        ("ppo.epoch: unknown key", "did you mean 'epochs'?"),
    ),
    Case(
        "wrong type",
        "a word where a number belongs",
        train(SOUND, "seed=first"),
        ("seed: found 'first'", "valid integer"),
    ),
    Case(
        "several problems",
        "three mistakes at once",
        train(SOUND, "seed=-1", "threads=0", "limt=2"),
        ("3 problem(s)", "seed: found -1", "threads: found 0", "did you mean 'limit'?"),
    ),
    Case(
        "limit nan",
        "a limit that is no number",
        train(SOUND, "limit=nan"),
        ("limit: found nan", "finite number"),
    ),
    Case(
        "limit infinite",
        "an infinite limit",
        train(SOUND, "limit=[inf]"),
        ("limit.0: found inf", "finite number"),
    ),
    Case(
        "config missing",
        "a config file that is not there",
        ("train", "mine.toml"),
        ("config file mine.toml does not exist", "check the path"),
    ),
    Case(
        "config malformed",
        "a config file that is no TOML",
        ("train", "mine.toml"),
        ("mine.toml: not readable as TOML", "line 2"),
        files(mine_toml="seed = 1\nlimit =\n"),
    ),
    Case(
        "config folder",
        "a folder given as the config file",
        ("train", "mine"),
        ("config file mine cannot be read (Is a directory)",),
        lambda folder: (folder / "mine").mkdir(),
    ),
    Case(
        "config of wrong type",
        "a wrong type in a config file",
        ("train", "mine.toml"),
        ("mine.toml: 1 problem(s)", "ppo.clip: found 'wide'"),
        files(mine_toml="[ppo]\nclip = 'wide'\n"),
    ),
    Case(
        "two configs",
        "two config files",
        ("train", "a.toml", "b.toml"),
        ("found 2 config files (a.toml, b.toml)", "give at most one"),
    ),
    Case(
        "override without key",
        "an override without a key",
        train(SOUND, "=3"),
        ("'=3' is not of the form key.path=value",),
    ),
    Case(
        "unknown preset",
        "a preset that does not exist",
        train(SOUND, "--preset", "ppolag"),
        ("preset 'ppolag' does not exist", "choose from ppo, static_shaping"),
    ),
    Case(
        "two presets",
        "one preset in the file, another as an option",
        ("train", "mine.toml", "--preset", "ppo"),
        ("--preset is ppo", "preset = 'pid_lagrangian'", "drop one"),
        files(mine_toml="preset = 'pid_lagrangian'\n"),
    ),
    Case(
        "dual clip",
        "a dual clip that is not above 1",
        train(SOUND, "ppo.dual_clip=1"),
        ("ppo.dual_clip: found 1", "greater than 1"),
    ),
    Case(
        "horizon",
        "windows of one step",
        train(SOUND, "ppo.horizon=1"),
        ("ppo.horizon is 1", "at least 2"),
    ),
    Case(
        "evaluation of one episode",
        "an interval from one episode",
        train(SOUND, "evaluation.episodes=1"),
        ("evaluation.episodes: found 1",),
    ),
    Case(
        "unknown device",
        "a device that does not exist",
        train(SOUND, "device=tpu"),
        ("device: found 'tpu'", "'cuda'"),
    ),
    Case(
        "unknown optimizer",
        "an optimizer that torch does not have",
        train(SOUND, *GRADIENT, "multiplier.optimizer=adan"),
        ("optimizer 'adan' is not in torch.optim", "did you mean", "adam"),
    ),
    Case(
        "optimizer option",
        "an option that the optimizer does not have",
        train(SOUND, *GRADIENT, "multiplier.optimizer_options={momentun = 0.9}"),
        ("has no option 'momentun'", "did you mean momentum?"),
    ),
    Case(
        "optimizer with closure",
        "an optimizer that cannot drive a multiplier",
        train(SOUND, *GRADIENT, "multiplier.optimizer=lbfgs"),
        ("cannot drive λ", "choose another"),
    ),
    Case(
        "log λ from 0",
        "a multiplier in log space that starts at 0",
        train(SOUND, *GRADIENT, "multiplier.parameterization=log"),
        ("starts at 0.0", "give initial > 0"),
    ),
    Case(
        "unknown controller",
        "a controller that does not exist",
        train(SOUND, "multiplier.kind=pidd"),
        ("multiplier: found 'pidd'", "did you mean 'pid'?"),
    ),
    Case(
        "key of another controller",
        "a gain that this controller does not have",
        train(SOUND, *GRADIENT, "multiplier.kp=1"),
        ("multiplier.kp: unknown key", "'pid'"),
    ),
    Case(
        "relative to 0",
        "a violation in units of a limit of 0",
        train(SOUND, "multiplier.relative=true", "limit=0"),
        ("a limit is 0", "multiplier.relative=false"),
    ),
    Case(
        "weights",
        "static weights of the wrong number",
        train(SOUND, "--preset", "static_shaping", "multiplier.weight=[1, 2]"),
        ("multiplier.weight has 2 entries for 1 constraint", "give one number"),
    ),
    Case(
        "single stream",
        "the published shaped stream with a moving λ",
        train(SOUND, "ppo.streams=single"),
        ("needs fixed weights", "multiplier.kind='fixed'"),
    ),
    Case(
        "squashed choices",
        "squashed actions where actions are choices",
        train(SOUND, "network.bounds=squash"),
        ("network.bounds is 'squash'", "leave them out"),
    ),
    Case(
        "unknown logger",
        "a logger that does not exist",
        train(SOUND, 'loggers=["mlflow"]'),
        ("loggers.0: found 'mlflow'", "'tensorboard'"),
    ),
    Case(
        "logger not installed",
        "a logger whose package is not installed",
        train(SOUND, 'loggers=["trackio"]'),
        ("trackio, which is not installed", "pip install"),
        missing=("trackio",),
    ),
    Case(
        "no transformers",
        "`crl llm` without transformers",
        ("llm", "compare"),
        ("needs transformers, which is not installed", "pip install"),
        missing=("transformers",),
    ),
    Case(
        "schema format",
        "a format that `crl schema` does not print",
        ("schema", "--format", "yaml"),
        ("--format", "'yaml'"),
        said="usage",
    ),
    Case("unknown command", "a command that does not exist", ("fly",), ("fly",), said="usage"),
    Case(
        "seed too large",
        "a seed that random generators cannot hold",
        train(SOUND, "seed=9999999999999999999"),
        ("seed: found 9999999999999999999", "below 2^63"),
    ),
)
