// Workflows keep the values of a node's widgets as a list in the order of the widgets. A version that adds a widget between others
// would give every later value to its neighbour. Each saved node also lists the names of its widgets, so values are put in
// their places by name here, before ComfyUI reads the list.

import { app } from "../../scripts/app.js";

const CONTROL = "control_after_generate";

function names(slots, count) {
    const found = slots.filter((slot) => slot.widget).map((slot) => slot.widget.name);
    const seed = found.indexOf("seed");
    // the widget behind a seed is listed in the values alone
    if (seed >= 0 && count === found.length + 1) found.splice(seed + 1, 0, CONTROL);
    return found;
}

function readByName(saved) {
    const values = saved.widgets_values;
    if (!saved.type?.startsWith("UniFusion") || !Array.isArray(values)) return;
    const earlier = names(saved.inputs ?? [], values.length);
    const node = window.LiteGraph.createNode(saved.type);
    if (!node || earlier.length !== values.length) return;
    const now = (node.widgets ?? []).filter((widget) => widget.serialize !== false);
    if (now.length === values.length && now.every((widget, index) => widget.name === earlier[index])) return;
    saved.widgets_values = now.map((widget) => {
        const index = earlier.indexOf(widget.name);
        return index < 0 ? widget.value : values[index];
    });
}

app.registerExtension({
    name: "UniFusion.earlierGraphs",
    beforeConfigureGraph(graph) {
        for (const part of [graph, ...(graph.definitions?.subgraphs ?? [])]) (part.nodes ?? []).forEach(readByName);
    },
});
