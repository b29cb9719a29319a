// A video in the place of each of a sample's canvases. A thousand videos would be slow to open: each brings controls of its own.
const films = (box) => {
  for (const place of box.querySelectorAll("canvas[data-src]")) {
    const video = document.createElement("video");
    for (const { name, value } of place.attributes) video.setAttribute(name, value);
    Object.assign(video, { muted: true, playsInline: true, preload: "auto", ariaLabel: place.dataset.label });
    place.replaceWith(video);
  }
};
// Videos that stand at one frame, that of the bar, and play together.
const player = (box) => {
  films(box);
  const videos = () => [...box.querySelectorAll("video")];
  const [button, back, forth] = box.querySelectorAll(".controls button");
  const bar = box.querySelector(".controls input");
  const speed = box.querySelector(".controls select");
  const shown = box.querySelector(".controls output");
  const frames = () => Number(bar.max);
  let turn = 0; // raised by whatever ends or replaces a playback

  const event = (video, name, there) => new Promise((done) => {
    if (there || video.error) return done();
    for (const either of [name, "error"]) video.addEventListener(either, done, { once: true });
  });
  const show = (frame) => {
    bar.value = frame;
    shown.textContent = `frame ${frame} of ${frames()}`;
    bar.setAttribute("aria-valuetext", shown.textContent);
  };
  const load = () => Promise.all(videos().map((video) => {
    if (!video.hasAttribute("src")) video.src = video.dataset.src;
    return event(video, "loadedmetadata", video.readyState > 0);
  }));
  // The middle of a frame, as a share of the clip: a truth of two frames has its own length.
  const seek = async () => {
    await load();
    const share = (bar.valueAsNumber - 0.5) / frames();
    return Promise.all(videos().filter((video) => !video.error && video.duration).map((video) => {
      video.currentTime = share * video.duration;
      return event(video, "seeked");
    }));
  };
  const pause = () => {
    turn += 1;
    button.textContent = "Play";
    for (const video of videos()) video.pause();
  };
  const play = async (from) => {
    const own = ++turn;
    button.textContent = "Pause";
    show(from);
    await seek();
    const whole = videos().filter((video) => !video.error);
    if (own !== turn) return;
    if (!whole.length) return pause();
    const leader = whole.reduce((one, other) => (other.duration > one.duration ? other : one));
    for (const video of whole) {
      video.playbackRate = Math.max(0.0625, Number(speed.value) * video.duration / leader.duration);
      video.play().catch(() => {});
    }
    const follow = () => {
      if (own !== turn) return;
      if (leader.ended) return play(1);
      const share = leader.currentTime / leader.duration;
      show(Math.min(frames(), Math.floor(share * frames()) + 1));
      for (const video of whole) {
        if (Math.abs(video.currentTime / video.duration - share) * frames() > 0.5) video.currentTime = share * video.duration;
      }
      requestAnimationFrame(follow);
    };
    requestAnimationFrame(follow);
  };
  const step = (by) => {
    pause();
    show(Math.min(frames(), Math.max(1, bar.valueAsNumber + by)));
    seek();
  };
  const unload = () => {
    pause();
    for (const video of videos().filter((video) => video.hasAttribute("src"))) { video.removeAttribute("src"); video.load(); }
  };
  button.addEventListener("click", () => {
    if (button.textContent === "Pause") { pause(); seek(); } else play(bar.valueAsNumber < frames() ? bar.valueAsNumber : 1);
  });
  back.addEventListener("click", () => step(-1));
  forth.addEventListener("click", () => step(1));
  bar.addEventListener("input", () => step(0));
  speed.addEventListener("change", () => { if (button.textContent === "Pause") play(bar.valueAsNumber); });
  // Videos hold memory: only those near the window are loaded.
  let near = false;
  const watch = ([entry]) => { near = entry.isIntersecting; if (near) seek(); else unload(); };
  new IntersectionObserver(watch, { rootMargin: "600px" }).observe(box);
  // For who changes the videos: from then on they are others, of so many frames, at the same frame if there is one.
  return (count) => {
    unload();
    bar.max = count;
    show(Math.min(count, bar.valueAsNumber));
    if (near) seek();
  };
};
// Hundreds of samples open at once only if each becomes a player when it first comes near the window.
const players = (boxes) => {
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((entry) => entry.isIntersecting)) {
      observer.unobserve(entry.target);
      player(entry.target);
    }
  }, { rootMargin: "600px" });
  for (const box of boxes) observer.observe(box);
};
