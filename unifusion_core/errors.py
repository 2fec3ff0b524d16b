"""All errors that users can cause. Each is one sentence: what was given, what is needed, what to do next.

UniFusionError
├── ConfigError        a configuration whose numbers do not fit together
├── ShapeError         a tensor or picture of the wrong shape, size or content
├── CheckpointError    a file that is damaged, of another kind, or does not fit
├── VLMError           a VLM folder that is missing, unsupported, or does not fit the generator
├── PromptError        a prompt or rewrite that the VLM cannot take
├── NumericsError      numbers that became NaN or infinite
└── TrainingError      a training run that diverged (non-finite gradient)
"""


class UniFusionError(Exception):
    """Root of all errors raised by UniFusion on purpose."""


class ConfigError(UniFusionError, ValueError):
    """A configuration whose numbers do not fit together."""


class ShapeError(UniFusionError, ValueError):
    """A tensor or picture of the wrong shape, size or content."""


class CheckpointError(UniFusionError, ValueError):
    """A file that is damaged, of another kind than asked for, or that does not fit its own configuration."""


class VLMError(UniFusionError, ValueError):
    """A VLM folder that is missing, incomplete, unsupported, or that does not fit the generator."""


class PromptError(UniFusionError, ValueError):
    """A prompt, picture set or rewrite that the VLM cannot take."""


class NumericsError(UniFusionError, FloatingPointError):
    """Numbers that became NaN or infinite, so that only noise or a black image could follow."""


class TrainingError(UniFusionError, FloatingPointError):
    """A training run that diverged (non-finite gradient)."""
