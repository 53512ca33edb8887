"""The settings of one command and what follows from them. The imports are here: `flexy --help` needs none of them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg

    from flexy_assets.scoring.work import Work
    from flexy_assets.storage.runs import SweepRow
    from resources.database import Database
    from resources.images import ImageStore
    from resources.settings import Settings


class Session:
    """Settings, database, image store and definitions, each read or built when it is first used."""

    @cached_property
    def settings(self) -> Settings:
        from resources.settings import Settings

        return Settings.read()

    @cached_property
    def database(self) -> Database:
        from resources.database import Database

        return Database(self.settings.database_url)

    @cached_property
    def store(self) -> ImageStore:
        from resources.images import ImageStore

        return ImageStore.from_settings(self.settings)

    @cached_property
    def definitions(self) -> dg.Definitions:
        from flexy_assets.definitions import build_definitions

        return build_definitions(self.settings)

    @property
    def work(self) -> Work:
        """The Dagster resource of the definitions; `work.results` holds what this process materialized."""
        work: Work = (self.definitions.resources or {})["work"]
        return work

    def migrate(self) -> Database:
        """Return the migrated database."""
        from flexy_assets.storage.migrate import migrate

        migrate(self.database)
        return self.database

    def find_sweep(self, prefix: str) -> SweepRow:
        """Return the sweep whose id begins with `prefix`. Raises `BadInputError` unless there is exactly one."""
        from flexy_assets.storage.runs import find_sweep, list_sweeps

        with self.migrate().begin(reading=True) as connection:
            return find_sweep(list_sweeps(connection), prefix)

    def update_results(self, instance: dg.DagsterInstance) -> list[str]:
        """Materialize the CSV, the tables and the report; return the errors of the steps that failed."""
        from flexy_assets.execution import run_job, step_failures

        return step_failures(run_job(instance, self.definitions, "results"))

    def refusals(self) -> list[str]:
        """Return why missing scores are not computed, for each column whose maker is unknown."""
        from flexy_assets.scoring import makers
        from flexy_assets.storage.scores import count_missing_scores
        from resources.metrics.sweep import METRICS

        with self.database.begin(reading=True) as connection:
            missing = count_missing_scores(connection, self.settings)
        refusals = makers.recall_refusals(self.work, [METRICS[name] for name in missing])
        return [makers.describe_refusal(maker) for maker in refusals.values()]

    def agreement(self) -> dict[str, Any]:
        """Return by metric how the scores that were in its column agree with a scorer's, and what was done."""
        from flexy_assets.scoring import makers
        from flexy_assets.storage.makers import list_makers
        from resources.metrics.sweep import METRICS

        with self.database.begin(reading=True) as connection:
            found = list_makers(connection, self.settings)
        return {each.metric: makers.agreement_document(each, METRICS[each.metric]) for each in found}

    def scores_computed(self) -> dict[str, int]:
        """Return how many scores this process has computed, of each metric it was asked for."""
        from flexy_assets import names
        from resources.metrics.sweep import METRICS

        computed = [name for metric in METRICS.values() for name in (metric.name, metric.beside.name)]
        outcomes = {name: self.work.results.get(names.score_asset(name)) for name in computed}
        return {metric: sum(each.done for each in some.values()) for metric, some in outcomes.items() if some}
