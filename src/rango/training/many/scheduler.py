"""Who takes part in a round: deficit round-robin (Shreedhar and Varghese 1995) over tokens.

Each round every job earns the same number of tokens, and pays for its step when it takes part, so
that in the long run all compute alike however long their samples are. Whoever has waited longest
comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Scheduler:
    """Plain integers: where a run goes on, it goes on as it would have."""

    round_tokens: int
    """What a round has to give; a single step that takes more is a round of its own."""
    credits: dict[str, int] = field(default_factory=dict)
    """Tokens earned and not yet paid."""
    waited: dict[str, int] = field(default_factory=dict)
    """Rounds since the job last took part."""

    def choose(self, costs: Mapping[str, int]) -> list[str]:
        """The jobs of the next round, at least one, given the tokens of each job's next step.

        First those that can pay, then, as long as there is room, others on credit, so that no round
        is emptier than it has to be. A job that is new begins with nothing; one that is no longer
        named is forgotten.
        """
        self.credits = {name: self.credits.get(name, 0) for name in costs}
        self.waited = {name: self.waited.get(name, 0) for name in costs}
        earned = -(-self.round_tokens // len(costs))
        for name in costs:
            self.credits[name] += earned
        order = sorted(costs, key=lambda name: -self.waited[name])  # stable: first come, first
        can_pay = [name for name in order if self.credits[name] >= costs[name]]
        chosen = self._fill(can_pay, costs, 0)
        used = sum(costs[name] for name in chosen)
        chosen += self._fill([name for name in order if name not in can_pay], costs, used)
        for name in costs:
            self.waited[name] += 1
        for name in chosen:
            self.credits[name] -= costs[name]
            self.waited[name] = 0
        # who earns more than it can spend does not save up for a monopoly, nor owes for ever
        for name, cost in costs.items():
            self.credits[name] = max(-cost, min(self.credits[name], cost))
        return [name for name in costs if name in chosen]

    def _fill(self, names: Sequence[str], costs: Mapping[str, int], used: int) -> list[str]:
        """Those of `names` in turn that a round has room for, `used` of it being taken; an empty
        round has room for any."""
        chosen = []
        for name in names:
            if not used or used + costs[name] <= self.round_tokens:
                chosen.append(name)
                used += costs[name]
        return chosen
