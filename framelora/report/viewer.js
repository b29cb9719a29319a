// Two videos of one sample beside or over each other. What there is to choose from is read from the samples below.
const viewer = (box) => {
  const [sampleChoice, oneChoice, otherChoice, viewChoice] = box.querySelectorAll(".choices select");
  const weight = box.querySelector("input.weight");
  const wipe = box.querySelector("input.wipe");
  const stage = box.querySelector(".stage");
  const [one, other] = stage.children;
  const reload = player(box);
  const weights = weight ? weight.dataset.methods.split(" ") : [];

  const offer = (choice, methods, wanted) => {
    const chosen = methods.includes(choice.value) ? choice.value : methods.includes(wanted) ? wanted : methods[0];
    choice.replaceChildren(...methods.map((method) => new Option(method, method)));
    choice.value = chosen;
  };
  const fill = (place, found, method) => {
    const video = place.querySelector("video");
    for (const name of ["width", "height"]) video.setAttribute(name, found.getAttribute(name));
    video.dataset.src = found.dataset.src;
    video.setAttribute("aria-label", method);
    place.querySelector(".name").textContent = method;
  };
  const update = () => {
    const sample = document.getElementById(sampleChoice.value).closest(".sample");
    const videos = new Map([...sample.querySelectorAll("[data-src]")].map((video) => [video.dataset.label, video]));
    const methods = [...videos.keys()];
    offer(oneChoice, methods, box.dataset.one);
    offer(otherChoice, methods, box.dataset.other);
    fill(one, videos.get(oneChoice.value), oneChoice.value);
    fill(other, videos.get(otherChoice.value), otherChoice.value);
    if (weight && weights.includes(otherChoice.value)) weight.value = weights.indexOf(otherChoice.value);
    reload(sample.querySelector(".controls input").max);
  };
  const arrange = () => {
    const view = viewChoice.value;
    stage.className = view === "beside" ? "stage" : `stage over ${view}`;
    wipe.closest("label").hidden = view !== "wipe";
    other.querySelector("video").style.clipPath = view === "wipe" ? `inset(0 0 0 ${wipe.value}%)` : "none";
  };
  for (const choice of [sampleChoice, oneChoice, otherChoice]) choice.addEventListener("change", update);
  viewChoice.addEventListener("change", arrange);
  wipe.addEventListener("input", arrange);
  if (weight) {
    weight.addEventListener("input", () => {
      otherChoice.value = weights[weight.valueAsNumber];
      weight.setAttribute("aria-valuetext", otherChoice.value);
      update();
    });
  }
  for (const link of document.querySelectorAll("[data-compare]")) {
    link.addEventListener("click", () => { sampleChoice.value = link.dataset.compare; update(); });
  }
  arrange();
  update();
};
