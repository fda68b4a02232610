"""Train a recipe to its end: data, model, run folder, updates, evaluation, results."""

from __future__ import annotations

import dataclasses
import sys
from datetime import timedelta

from cskd_hf.engine.cpu_tuning import keep_freed_memory, wait_briefly
from cskd_hf.recipe.recipe import Recipe, recipe_hash


def train(recipe: Recipe) -> int:
    """Run a recipe to its end in this process, one of however many Accelerate finds; returns the exit status."""
    # Heavy imports wait until the recipe is known to be good: a mistake in it shall show at once.
    wait_briefly()
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object, set_seed
    from timm.scheduler import create_scheduler_v2
    from timm.utils import ModelEmaV3, distribute_bn

    from cskd_hf.data.batches import GlobalBatches
    from cskd_hf.data.inspect import cheap_problems
    from cskd_hf.data.loaders import workers_ended
    from cskd_hf.data.splits import fingerprint, load_images
    from cskd_hf.engine.build import (
        build_objective,
        compile_objective,
        make_experiment,
        make_sampler,
        training_loader,
    )
    from cskd_hf.engine.distributed import Peers, check_agreement, check_processes, synchronise_batch_norm
    from cskd_hf.engine.failures import check_predictions, check_weights, let_workers_die, tell
    from cskd_hf.engine.objective import try_out
    from cskd_hf.engine.optimizer import create_optimizer
    from cskd_hf.engine.stopping import StopRequest
    from cskd_hf.engine.updates import training_updates
    from cskd_hf.evaluation import metrics
    from cskd_hf.evaluation.predictions import EvaluationStoppedError, Predictions, predict_split
    from cskd_hf.hub.publish import publish_run
    from cskd_hf.hub.upload import check_target
    from cskd_hf.models.factory import count_parameters
    from cskd_hf.models.memory import gather_memories
    from cskd_hf.recipe.resolve import resolve
    from cskd_hf.report.console import Console
    from cskd_hf.report.finish import finish
    from cskd_hf.report.report import write_report
    from cskd_hf.runs import folder as run_folder
    from cskd_hf.runs.checkpoint import load_average, load_checkpoint, save_checkpoint
    from cskd_hf.runs.progress import Progress, Stopwatch

    # processes
    timeout = InitProcessGroupKwargs(timeout=timedelta(seconds=recipe.run.ddp_timeout))
    accelerator = Accelerator(
        mixed_precision=recipe.run.mixed_precision,
        log_with=list(recipe.run.report_to) or None,
        project_dir=recipe.run.output_dir,
        kwargs_handlers=[timeout],
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    check_processes(accelerator, recipe)
    if recipe.run.hub_model_id:
        check_target(recipe.run.hub_model_id)  # a missing token shows before hours of work
    peers = Peers(accelerator)
    console = Console(accelerator.is_main_process)

    # images
    recipe = resolve(recipe)
    with accelerator.main_process_first():  # the others find what it downloaded
        images = load_images(recipe.data)
    if accelerator.is_main_process:
        for problem in cheap_problems(images, recipe):
            console.say(f"note: {problem}")
    batches = GlobalBatches(
        make_sampler(recipe, images.train),
        recipe.data.batch_size,
        accelerator.num_processes,
        accelerator.process_index,
        recipe.data.drop_last,
    )
    loader = training_loader(recipe, images.train, batches, pin_memory=accelerator.device.type == "cuda")
    facts = {"recipe": recipe_hash(recipe), "training images": fingerprint(images.train)}
    facts |= {"test images": fingerprint(images.test)}
    check_agreement(peers, facts)

    # model
    set_seed(recipe.run.seed)
    experiment = make_experiment(recipe, images.train)
    objective = build_objective(recipe, experiment)
    recipe = recipe.replace(
        model={"num_classes": images.num_classes}, run={"mixed_precision": accelerator.mixed_precision}
    )
    if recipe.run.sync_bn:
        objective.module = synchronise_batch_norm(objective.module, accelerator)
    module = objective.module
    trained = network = recipe.method.export(module)  # what is evaluated is what is exported
    try_out(objective, recipe.transform.input_size, batches.smallest, images.num_classes, accelerator.device)

    # optimizer
    lr, _ = recipe.optimizer.scaled_lr(batches.global_batch_size * recipe.run.gradient_accumulation_steps)
    optimizer = create_optimizer(recipe.optimizer, network, module, lr)
    settings = recipe.scheduler.model_dump(exclude_none=True)
    scheduler, _ = create_scheduler_v2(
        optimizer, **settings, updates_per_epoch=-(-len(batches) // recipe.run.gradient_accumulation_steps)
    )
    compile_objective(recipe, objective)
    objective, optimizer = accelerator.prepare(objective, optimizer)

    # run folder
    found = run_folder.start(recipe, accelerator.num_processes) if accelerator.is_main_process else None
    folder, checkpoint, finished = broadcast_object_list([found])[0]
    if finished:
        if accelerator.is_main_process and not (folder / "report.html").is_file():
            write_report(folder)  # a kill after the summary left none
        console.say(f"{folder} is finished; its result:")
        console.result(folder)
        # At every orderly end: gloo's threads may need Python a moment after a collective has returned, and abort the
        # process where it is being taken down by then (pytorch/pytorch#190489). They end with the last that holds the
        # group; run_command sees to cycles.
        accelerator.end_training()
        return 0
    progress = Progress()
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, module, optimizer, accelerator.scaler)
        console.say(f"resuming at step {progress.step}, epoch {progress.epoch}, sample {progress.position}")
    ema = None
    if recipe.run.model_ema:
        ema = ModelEmaV3(network, decay=recipe.run.model_ema_decay, use_warmup=recipe.run.model_ema_warmup)
        trained = ema.module
        if checkpoint is not None:
            load_average(checkpoint, trained)
    if accelerator.is_main_process:
        run_folder.cut_metrics(folder, progress.epoch - bool(progress.line))
    if recipe.run.report_to:
        flat = {f"{s}.{k}": str(v) for s, keys in recipe.to_dict().items() for k, v in keys.items()}
        accelerator.init_trackers("cskd_hf", config=flat)
    console.start(recipe, images, count_parameters(network), batches, progress, recipe.scheduler.total_epochs)
    if accelerator.num_processes > 1:
        batches.start_epoch(progress.epoch, progress.position)
        console.first_keys(recipe, peers.names, gather_object([batches.first_keys()]))

    # The test split is looked at once, at the end, wherever there is a held-out one to watch instead.
    watched = "test" if images.holdout is None else "holdout"

    def predict(split: str, autocast: bool) -> Predictions:
        return predict_split(
            trained,
            getattr(images, split),
            accelerator,
            recipe.data,
            recipe.transform,
            channels_last=recipe.run.channels_last,
            autocast=autocast,
            with_features=not autocast,
            stop=stop.agreed,
        )

    def save(totals: dict[str, float]) -> None:
        check_weights(network, progress.step)
        if accelerator.num_processes > 1:
            for other in gather_object([progress.skipped]):
                progress.skipped.update(other)
        remembered = gather_memories(module)
        if accelerator.is_main_process:
            state = dataclasses.replace(progress, totals=totals)
            place, keep = folder / "checkpoints", recipe.run.checkpoints_total_limit
            average = None if ema is None else trained
            save_checkpoint(
                place, module, optimizer, accelerator.scaler, state, recipe_hash(recipe), keep, average, remembered
            )
        accelerator.wait_for_everyone()  # who left now would take the one that writes along

    def end_epoch() -> None:
        """Evaluate, and put the line of the epoch that `progress.line` has begun into metrics.jsonl."""
        line, last = progress.line, recipe.scheduler.total_epochs
        if progress.epoch % recipe.run.val_interval == 0 or progress.epoch == last:
            seen = predict(watched, autocast=True)
            if seen.logits.isfinite().all():
                line[f"{watched}/top1_error"] = metrics.top_k_error(seen.logits, seen.target, 1)
                line[f"{watched}/nll"] = metrics.nll(seen.logits, seen.target)
                line[f"{watched}/ece"] = metrics.ece(seen.logits, seen.target)
            else:  # half precision may overflow where training, with its own batch statistics, does not
                console.say(f"note: epoch {progress.epoch}: logits of the {watched} split are not finite")
        if accelerator.is_main_process:
            run_folder.append_metrics(folder, line)
        if recipe.run.report_to:
            accelerator.log({k: v for k, v in line.items() if k not in ("epoch", "step")}, step=progress.step)
        console.epoch(line, last)
        progress.line = {}
        save({})

    watch = Stopwatch(progress)
    updates = training_updates(
        objective,
        optimizer,
        scheduler,
        loader,
        batches,
        accelerator,
        progress,
        num_epochs=recipe.scheduler.total_epochs,
        gradient_accumulation_steps=recipe.run.gradient_accumulation_steps,
        clip_grad=recipe.run.clip_grad,
        grad_checkpointing=recipe.run.grad_checkpointing,
        seed=recipe.run.seed,
    )
    with StopRequest(accelerator, recipe.run.max_hours) as stop, workers_ended(loader):
        try:
            if progress.line:  # stopped while it evaluated
                end_epoch()
            # training
            for update in updates:
                if ema is not None:
                    ema.update(network, step=update.step)
                console.advance(progress)
                if update.step % recipe.run.logging_steps == 0:
                    terms = {name: value.item() for name, value in update.terms.items()}  # a wait for the device
                    console.show(terms, progress)
                    if recipe.run.report_to:
                        told = {f"update/{name}": value for name, value in terms.items()}
                        accelerator.log(told | {"lr": update.lr}, step=update.step)
                if update.ends_epoch:
                    if accelerator.num_processes > 1:  # each process has its own running statistics
                        for part in (module,) if ema is None else (module, trained):
                            distribute_bn(part, accelerator.num_processes, reduce=True)
                    totals = update.totals.read(accelerator)
                    samples = totals.pop("samples")
                    progress.line = {"epoch": update.epoch, "step": update.step, "lr": update.lr}
                    progress.line |= {f"train/{name}": value / samples for name, value in totals.items()}
                    progress.line |= watch.lap(progress)
                    end_epoch()
                elif recipe.run.checkpoint_steps and update.step % recipe.run.checkpoint_steps == 0:
                    save(update.totals.read(accelerator))
                if stop.agreed(ask_now=update.ends_epoch):
                    if not update.ends_epoch:
                        save(update.totals.read(accelerator))
                    console.stopped(stop.reason, progress)
                    accelerator.end_training()
                    return stop.status
            # results
            predictions = {split: predict(split, autocast=False) for split in dict.fromkeys((watched, "test"))}
        except EvaluationStoppedError:
            save({})
            console.stopped(stop.reason, progress)
            accelerator.end_training()
            return stop.status
        except (EOFError, OSError, RuntimeError) as error:
            let_workers_die()
            console.close()
            return tell(error, folder, images.train, progress, peers)
    console.close()

    diverged = check_predictions(predictions)
    if diverged:
        if accelerator.is_main_process:
            print(f"error: {diverged}", file=sys.stderr)
        accelerator.end_training()
        return 1
    if accelerator.is_main_process:
        finish(
            folder,
            recipe,
            images,
            trained,
            predictions,
            progress,
            num_processes=accelerator.num_processes,
            peak_memory_bytes=torch.cuda.max_memory_allocated() if accelerator.device.type == "cuda" else None,
        )
        console.result(folder)
    accelerator.end_training()
    if recipe.run.hub_model_id and accelerator.is_main_process:
        return publish_run(folder, recipe.run.hub_model_id, private=recipe.run.hub_private_repo, say=console.say)
    return 0
