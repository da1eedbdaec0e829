// Statement 6 in the page: the predicted norm of each layer's Hessian.
//
// The typical norm of the batch mean in wide networks, for samples of one norm of which any two
// have one overlap:
//   |H_k|^2 = 1/B (K q)^2 <D, D> + (1 - 1/B) (K' q')^2 <D, D'>,
// K = E |z^{k-1}|^2, q the gain of squared Jacobians above layer k, D the output curvature; a
// prime marks the same for two different samples. Everything is kept as logarithms: the
// product over 50 layers leaves the range of floating-point numbers.
"use strict";

(function () {
  // Find where x lies in a sorted table, for use by `between`: the piece, and the place in it.
  function locate(table, x) {
    let i = 0;
    while (i < table.length - 2 && x > table[i + 1]) i += 1;
    return { i, t: (x - table[i]) / (table[i + 1] - table[i]) };
  }

  // Interpolate by cubics with centered slopes. Below the table gains are constant; above it
  // they go on along a line, a power of the deviation.
  function between(values, { i, t }, last = values.length - 1) {
    const a = values[i];
    const b = values[i + 1];
    if (t < 0) return a;
    if (t > 1) return a + t * (b - a);
    const before = i > 0 ? values[i - 1] : 2 * a - b;
    const after = i + 1 < last ? values[i + 2] : 2 * b - a;
    const left = (b - before) / 2;
    const right = (after - a) / 2;
    return (
      a + t * (left + t * (3 * (b - a) - 2 * left - right + t * (left + right - 2 * (b - a))))
    );
  }

  const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

  // Read a ratio from a table over deviations and angles, with the cosine in place of the angle.
  function ratio(rows, place, angles, cosine) {
    // The angles are pi / 2 t^2: in t they are even, and kernels are smooth.
    const angle = Math.acos(clamp(cosine, 0, 1));
    const position = Math.sqrt((2 * angle) / Math.PI) * (angles.length - 1);
    const i = Math.min(Math.floor(position), angles.length - 2);
    const here = (row) => between(row, { i, t: position - i });
    if (rows.length === 1) return here(rows[0]);
    const t = clamp(place.t, 0, 1);
    return (1 - t) * here(rows[place.i]) + t * here(rows[place.i + 1]);
  }

  // log c and log c' of an activation at a log deviation, and both ratios at a cosine.
  function gains(data, activation, logStd, cosine) {
    const table = data.activations[activation];
    const single = table.std.length === 1;
    const place = single ? { i: 0, t: 0 } : locate(table.logStd, logStd);
    const read = (values) => (single ? values[0] : between(values, place));
    return {
      forward: read(table.logForward),
      backward: read(table.logBackward),
      forwardRatio: ratio(table.forwardRatio, place, data.angles, cosine),
      backwardRatio: ratio(table.backwardRatio, place, data.angles, cosine),
    };
  }

  // The tables in logarithms, once.
  function prepare(data) {
    for (const table of [...Object.values(data.activations), data.output]) {
      table.logStd = table.std.map(Math.log);
    }
    for (const table of Object.values(data.activations)) {
      table.logForward = table.forward.map(Math.log);
      table.logBackward = table.backward.map(Math.log);
    }
    data.output.logNorm = data.output.norm.map(Math.log);
    return data;
  }

  // The deviation of each layer's weights. `first`, `others` and `output` are multiples of the
  // critical ones; the output's multiple comes on top of the others'.
  function deviations(data, network) {
    const { depth, width, activation, dropout, first, others, output } = network;
    const critical = Math.sqrt((data.activations[activation].critical / width) * (1 - dropout));
    const stds = [first / Math.sqrt(data.inputs.size)];
    for (let k = 2; k <= depth; k += 1) stds.push(others * critical);
    stds[depth - 1] *= output;
    return stds;
  }

  // Predict each layer: `norm`, and its factors `forward` (K), `backward` (q) and `output`
  // (root mean square of |D|), all as natural logarithms; `std` of the weights, as it is.
  function predict(data, network) {
    const { depth, width, activation, dropout, batch } = network;
    const stds = deviations(data, network);
    const kept = 1 - dropout;
    const kernels = [Math.log(data.inputs.squaredNorm)];
    const cosines = [data.inputs.overlap];
    const slopes = [];
    const slopeRatios = [];
    for (let k = 1; k < depth; k += 1) {
      const logVariance = 2 * Math.log(stds[k - 1]) + kernels[k - 1];
      const g = gains(data, activation, logVariance / 2, cosines[k - 1]);
      // Kept units are divided by the probability: one sample's square grows by it, the
      // product of two samples, whose masks differ, does not.
      kernels.push(logVariance + Math.log(width) + g.forward - Math.log(kept));
      cosines.push(g.forwardRatio * kept);
      slopes.push(2 * Math.log(stds[k]) + Math.log(width) + g.backward - Math.log(kept));
      slopeRatios.push(g.backwardRatio * kept);
    }
    const logLogits = Math.log(stds[depth - 1]) + kernels[depth - 1] / 2;
    const place = locate(data.output.logStd, logLogits);
    const output = between(data.output.logNorm, place);
    const outputRatio = ratio(data.output.ratio, place, data.angles, cosines[depth - 1]);

    const layers = [];
    let backward = 0;
    let backwardRatio = 1;
    for (let k = depth; k >= 1; k -= 1) {
      const forward = kernels[k - 1];
      const pair = (cosines[k - 1] * backwardRatio) ** 2 * outputRatio;
      layers.unshift({
        layer: k,
        std: stds[k - 1],
        forward,
        backward,
        output,
        norm: forward + backward + output + Math.log(1 / batch + (1 - 1 / batch) * pair) / 2,
      });
      if (k > 1) {
        backward += slopes[k - 2];
        backwardRatio *= slopeRatios[k - 2];
      }
    }
    return layers;
  }

  // Predict, and judge each layer by the same network at its critical deviations.
  function explore(data, network) {
    const balanced = predict(data, { ...network, first: 1, others: 1, output: 1 });
    return predict(data, network).map((layer, k) => {
      const factor = (layer.norm - balanced[k].norm) / Math.LN10;
      const regime = factor > 1 ? "exploding" : factor < -1 ? "vanishing" : "balanced";
      return { ...layer, balanced: balanced[k].norm, regime };
    });
  }

  // Find the measured network that the controls describe, if there is one.
  function matching(data, network) {
    const stds = deviations(data, network);
    const same = ["width", "depth", "activation", "dropout", "batch"];
    return data.measured.find(
      (found) =>
        same.every((name) => found[name] === network[name]) &&
        found.stds.every((std, k) => Math.abs(Math.log(std / stds[k])) < 0.03),
    );
  }

  // The controls' values that describe a measured network.
  function describe(data, found) {
    const { width, depth, activation, dropout, batch, stds } = found;
    const unit = { width, depth, activation, dropout, batch, first: 1, others: 1, output: 1 };
    const critical = deviations(data, unit);
    const others = stds[depth > 2 ? 1 : depth - 1] / critical[1];
    const output = stds[depth - 1] / critical[depth - 1] / others;
    return { ...unit, first: stds[0] / critical[0], others, output };
  }

  globalThis.hessinitExplorer = { prepare, deviations, predict, explore, matching, describe };
})();
