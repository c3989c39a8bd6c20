"""
Any task of lm-evaluation-harness (optional: pip install lm_eval), with thoughts and without. All its own command line:

    python -m studies.harness --model quiet_star --model_args run=out/mine,thinking=True --tasks hellaswag --limit 100

model_args: run (a folder of a run or of weights), thinking (default True), batch_size (32), device (auto), bos (False),
max_length (2048).
"""

import torch

from lib.asking import candidate, complete, likelihood, predict_ends, score
from lib.parallel import pick_device
from lib.runs import load_model


def adapter(base, windows):
    """The class that the harness calls. base: its LM; windows: its function that cuts a long text for `rolling`."""

    class QuietStarLM(base):
        def __init__(
            self,
            run="",
            thinking=True,
            batch_size=32,
            device="auto",
            bos=False,
            max_length=2048,
            **_,
        ):
            super().__init__()
            where = device if device in ("cpu", "cuda") else "auto"
            model, self.tokenizer, *_ = load_model(run, pick_device(where))
            self.who = candidate(model.eval(), thinking)
            self.batch_size, self.bos, self.max_length = int(batch_size), bos, max_length

        def loglikelihood(self, requests, disable_tqdm=False):
            """[(log p of the continuation, is it the greedy one?)]. An empty context is a line end."""
            pairs = [
                (context or "\n", text) for context, text in (request.args for request in requests)
            ]
            return score(self.who, self.tokenizer, pairs, likelihood, self.bos, self.batch_size)

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            """[log p of a whole text, each token once], in windows of max_length tokens."""
            first = self.tokenizer.eos_id
            first = self.tokenizer.encode("\n")[0] if first is None else first
            rows, owner = [], []
            for i, request in enumerate(requests):
                ids = self.tokenizer.encode(request.args[0])
                for context, part in windows(ids, first, self.max_length):
                    rows.append(([*context, *part], len(part)))
                    owner.append(i)
            found = [0.0] * len(requests)
            scores = predict_ends(
                self.who, rows, likelihood, self.batch_size, self.who.device, "rolling"
            )
            for i, (log_p, _) in zip(owner, scores, strict=True):
                found[i] += log_p
            return found

        def generate_until(self, requests, disable_tqdm=False):
            """[what is written before the first stop]. Requests that ask for the same go together."""
            found, groups = [None] * len(requests), {}
            for i, request in enumerate(requests):
                asked = dict(request.args[1])
                stop = asked.get("until") or []
                stop = [stop] if isinstance(stop, str) else stop
                temperature = (
                    float(asked.get("temperature") or 0) if asked.get("do_sample") else 0.0
                )
                how = tuple(stop), int(asked.get("max_gen_toks", 256)), temperature
                groups.setdefault(how, []).append(i)
            for (stop, new, temperature), some in groups.items():
                prompts = [requests[i].args[0] for i in some]
                how = stop, new, temperature, 1337, self.bos, self.batch_size
                for i, (text, _) in zip(
                    some, complete(self.who, self.tokenizer, prompts, *how), strict=True
                ):
                    found[i] = text
            return found

    return QuietStarLM


def whole_windows(get_rolling_token_windows, make_disjoint_window):
    """The harness's own windows: (context ids, ids to predict) that cover a text once."""

    def windows(ids, first, length):
        cut = get_rolling_token_windows(
            token_list=ids, prefix_token=first, max_seq_len=length, context_len=1
        )
        return map(make_disjoint_window, cut)

    return windows


def main():
    try:
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    except ImportError:
        raise SystemExit("harness.py: error: this needs a package: pip install lm_eval") from None
    register_model("quiet_star")(
        adapter(LM, whole_windows(get_rolling_token_windows, make_disjoint_window))
    )
    with torch.no_grad():
        cli_evaluate()


if __name__ == "__main__":
    main()
