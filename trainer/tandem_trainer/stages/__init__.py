"""The stages of a step: each module has `run(context: StageContext) -> StageResult`."""
