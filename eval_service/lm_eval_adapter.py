"""Our engines as a model of lm-evaluation-harness, for the tasks that are described there: the only file that imports lm_eval.

It finds models in its own list alone (0.4.13 knows no plug-ins), so its command line is started from here:

    python -m eval_service.lm_eval_adapter --model losslens --model_args pretrained=DIR,engine=auto --tasks hellaswag

Text becomes tokens as in its `hf` model: white space at a context's end counts as continuation, a tokenizer that begins
every text with a token does so here, and long documents are cut into its own rolling windows.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval_service.checkpoints import read_config
from eval_service.choose import available, choose
from eval_service.scorer import open_engine
from losslens.errors import EnvironmentFailure, LosslensError, UserError
from losslens.tasks.requests import Generate, GenerateResult, LogLikelihood, LogLikelihoodResult, Request

try:
    import lm_eval.models  # noqa: F401 - its own models, which are looked for only while its list is empty
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ModuleNotFoundError as error:
    raise EnvironmentFailure("lm-evaluation-harness is not installed", "pip install lm_eval") from error

_MAX_TOKENS = 256  # what lm-eval's `hf` generates where a task does not say


@register_model("losslens")
class LosslensModel(LM):  # type: ignore[misc] # lm_eval is untyped
    """`pretrained`: a Hugging Face directory; `engine`: auto, torch or vllm.

    What lm-eval always hands over and the engines decide themselves is taken and left: batch sizes and the device.
    """

    def __init__(
        self,
        pretrained: str,
        engine: str = "auto",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UserError(f"the model losslens has no argument {next(iter(unknown))!r}", "it takes pretrained and engine")
        directory = Path(pretrained)
        if not directory.is_dir():
            raise UserError(f"{pretrained} is not a directory", "give pretrained= a Hugging Face model directory")
        short, _ = choose(engine, read_config(directory), available())
        self._engine = open_engine(short)
        atexit.register(self.close)  # lm-eval lets its models fall, and a vLLM left to the interpreter's exit aborts it
        self._engine.load(directory)
        self._opening = _opening(directory)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability of the continuation in nats, whether greedy decoding gives it) per (context, continuation)."""
        results = self._engine.run([self._pair(*request.args) for request in requests])
        return [(result.logprob, result.greedy) for result in results if isinstance(result, LogLikelihoodResult)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each whole text, in windows that overlap by one token and a fuller last one."""
        from lm_eval.utils import get_rolling_token_windows

        encoder, window = self._engine.encoder, self._engine.window
        if encoder.start is None:
            raise UserError("the tokenizer has no token to stand before a text", "give it a beginning-of-text or end-of-text token")
        sequences: list[list[int]] = []
        first: list[int] = []
        owners: list[int] = []
        for owner, tokens in enumerate(encoder.encode([self._begun(request.args[0]) for request in requests])):
            for inputs, scored in get_rolling_token_windows(tokens, encoder.start, window, context_len=1):
                sequences.append([*inputs, scored[-1]])
                first.append(len(inputs) + 1 - len(scored))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, logprobs in zip(owners, self._engine.logprobs(sequences, first), strict=True):
            totals[owner] += float(logprobs.sum())
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy text after each context, before the first of its stop strings."""
        results = self._engine.run([self._generate(*request.args) for request in requests])
        return [result.text for result in results if isinstance(result, GenerateResult)]

    def get_model_info(self) -> dict[str, str]:
        """What lm-eval stores beside its scores."""
        return {"losslens_engine": self._engine.name}

    def close(self) -> None:
        """Free the engine."""
        atexit.unregister(self.close)
        self._engine.close()

    def _pair(self, context: str, continuation: str) -> Request:
        kept = context.rstrip()
        return LogLikelihood(self._begun(kept) if kept else "", context[len(kept) :] + continuation)

    def _generate(self, context: str, settings: dict[str, Any]) -> Request:
        if settings.get("do_sample") or settings.get("temperature"):
            raise UserError("the model losslens decodes greedily, and the task asks for samples", "set do_sample=False and temperature=0")
        until = settings.get("until") or ()
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        most = next((settings[name] for name in names if settings.get(name) is not None), _MAX_TOKENS)
        return Generate(self._begun(context), (until,) if isinstance(until, str) else tuple(until), int(most))

    def _begun(self, text: str) -> str:
        return text if text.startswith(self._opening) else self._opening + text


def main(arguments: Sequence[str]) -> None:
    """lm-eval's command line, which knows one model more."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv[1:] = arguments
    cli_evaluate()


def _opening(directory: Path) -> str:
    """The text of the token that the tokenizer puts before every text unasked; lm-eval's `hf` lets it.

    Our own tasks never ask for it, so the token is put in as text, which has to give the same ids.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    unasked = tokenizer.encode("")
    if not unasked:
        return ""
    opening = str(tokenizer.decode(unasked))
    sample = "One, two: 3.\n"
    if unasked != [tokenizer.bos_token_id] or tokenizer.encode(sample) != tokenizer.encode(opening + sample, add_special_tokens=False):
        raise UserError(
            f"the tokenizer in {directory} adds tokens to every text that text cannot stand for", "use lm-eval's own model `hf` for it"
        )
    return opening


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LosslensError as error:
        print(f"losslens: {error}\nremedy: {error.remedy}", file=sys.stderr)
        sys.exit(error.exit_code)
