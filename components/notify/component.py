"""How a run ended, told to whoever waits for it."""

from kfp import dsl
from kfp.dsl import PipelineTaskFinalStatus

from components.images import image


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def notify(status: PipelineTaskFinalStatus, pipeline: str) -> None:
    """Say in one sentence how the run ended; the last step, whatever happened before it.

    Args:
        pipeline: name of the pipeline.
    """
    from components.notify.notifying import run

    run(pipeline, status.state, status.error_message, status.pipeline_job_resource_name)
