"""What can be said against a file before any weight is read: one answer for `inspect` and `run`."""

from __future__ import annotations

from offload.chat import check_tokenizer
from offload.config import ModelConfig
from offload.errors import GGUFError
from offload.gguf import GGUFFile
from offload.tokenizer import Tokenizer


def check_model(file: GGUFFile, config: ModelConfig | None = None) -> tuple[ModelConfig, Tokenizer]:
    """The configuration and the tokenizer of a file that this version can run.

    Architecture, sizes, rotation, tensors and their types, vocabulary, chat format. config: of the
    same file, where it is known already.
    Raises an OffloadError that names the first obstacle.
    """
    config = config or ModelConfig.from_gguf(file)
    tokenizer, _ = check_tokenizer(file.metadata, file.paths[0])
    check_vocabulary(config, tokenizer)
    return config, tokenizer


def check_vocabulary(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Tokens of the tokenizer must be rows of the embedding table."""
    if tokenizer.n_vocab > config.vocab_size:
        raise GGUFError(
            f"the vocabulary has {tokenizer.n_vocab:,} tokens but the embedding table has "
            f"{config.vocab_size:,} rows; the file was converted wrongly"
        )
